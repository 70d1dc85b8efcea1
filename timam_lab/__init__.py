"""What the notebooks and studies use and no training needs: grids of runs, statistics, figures, the renderer."""
